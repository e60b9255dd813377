"""The formulas of losses."""
