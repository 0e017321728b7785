"""ParaKnow: move knowledge between language models as weights, and see whether it really moved."""

__version__ = "0.1.0"
