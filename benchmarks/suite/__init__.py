"""SQLAlchemy's own tests as a proof of capture: see docs/proof.md."""
