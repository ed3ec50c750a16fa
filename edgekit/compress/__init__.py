"""Compression verbs, one per file: model in, model or plan out."""
