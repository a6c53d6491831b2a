"""Tables of labels: read in bounded memory, matched to images by their names, columns made into attributes.

Imports neither torch nor numpy; pyarrow only for parquet.
"""
