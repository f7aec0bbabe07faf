"""Images and what is known of them: sources, tables with checked columns, splits, corrections."""
