-- Without a relay: append and nothing else.
append(1, 1)
