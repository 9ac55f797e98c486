"""Measuring: latency, accuracy, memory, size; the machine; statistics; and the verbs that judge."""
