"""Estimators that measure: from samples to nats, fitted and judged on different samples."""
