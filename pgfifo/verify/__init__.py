"""Prove the promises on one's own set-up: record what clients see, do harm, and judge the history."""
