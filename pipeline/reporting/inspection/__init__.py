"""Data before anything is trained on them (`carabid inspect`): look (what is gathered), about_table and about_images (sections of
it), and inspection (all of it in the terminal and as a page)."""
