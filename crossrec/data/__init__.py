"""From Parquet to checked, bucketed, time-ordered histories and a catalogue."""
