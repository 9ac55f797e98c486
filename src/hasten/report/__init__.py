"""Reports: history and records, made readable."""
