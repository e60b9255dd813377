"""Normalization that an exporter wrote in elementwise operators, and what proves it."""
