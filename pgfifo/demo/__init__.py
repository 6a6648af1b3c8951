"""The demo: the main job of pgfifo in front of one's eyes, with a verdict that does not take its word for it."""
