"""Objectives that agents maximise, one small class per family."""
