"""Custom images: class folders, tables and parquet files (DATASET.NAME folder)."""
