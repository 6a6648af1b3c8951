"""How fast pgfifo is, measured beside floors written for it, in one run on one server.

Absolute figures belong to a machine and to what else it did; so what counts are ratios of runs that
alternate. `python -m bench quick` says it in under two minutes, `python -m bench held` shows a long run
beside an open snapshot, `python -m bench` sets all systems side by side in all scenarios, and
`python -m bench profile` shows where calls spend their time.
"""
