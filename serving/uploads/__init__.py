"""Slides that clients send: received, kept for a while, and handed to who predicts them."""
