"""Harm that takes longer than the suite has time for, with a history checker behind it: `make faults`."""
