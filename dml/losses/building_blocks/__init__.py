"""What losses are made of. None of these files is a loss, and none knows one.

contract: checks, precision, messages. pairwise: distances with gradient. extremes: the few entries of each row that NRA
and hard triplets need. rowwise: losses as terms of the rows of a distance matrix that is never whole.
"""
