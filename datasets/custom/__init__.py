"""Images of your own: class folders, tables and parquet files (DATASET.NAME folder)."""
