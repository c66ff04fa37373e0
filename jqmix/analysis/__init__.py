"""The analysis of finished runs: results over seeds, statistics, figures, reports and studies, all without JAX."""
