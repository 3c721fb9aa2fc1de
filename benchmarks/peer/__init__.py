"""What `peers.py` is made of: the data, where each peer is installed, how it is run, how answers differ."""
