"""`pion new`: look at data, and write a job file for them."""
