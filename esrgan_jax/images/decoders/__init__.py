"""One reader a format.

Each takes a file's bytes and the most pixels to accept, and returns a `Found`.
It walks through the file's own structure first, whose numbers are held against
the bytes that are there; a decoder in C then gets what belongs to the pixels
and nothing else. Metadata never reach another library's parser, save a CMYK
profile and what tifffile needs.

What is not sound raises nearly anything: `reading.py` makes an `ImageError` of
it. What a person can do something about is one already.
"""
