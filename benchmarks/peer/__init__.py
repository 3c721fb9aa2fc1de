"""Parts of `peers.py`: data sets, environments of the peers, runs, and comparison of answers."""
