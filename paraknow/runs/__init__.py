"""Runs on disk: folders that are the truth, a queue made of them, and the worker that carries them out."""
