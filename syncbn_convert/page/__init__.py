"""A report as one self-contained HTML page, with pictures; behind `--report`."""
