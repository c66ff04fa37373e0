"""The host side of a run: compiling, logging, saving, loading, measuring."""
