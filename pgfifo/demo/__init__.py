"""The demo: pgfifo's main job in front of one's eyes, and a verdict that does not take its word for it."""
