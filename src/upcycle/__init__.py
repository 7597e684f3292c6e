"""upcycle: scaling laws for upcycling dense language models into mixtures of experts."""

__version__ = "0.2.0"
