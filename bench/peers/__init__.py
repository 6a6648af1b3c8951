"""The programs that produce and consume, one per system, each run in that system's own environment.

They import nothing of the project but `bench.peers.common` (pgfifo's and the floors' do), so that a peer's
environment holds the peer and what it needs, and nothing else.
"""
