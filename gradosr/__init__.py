"""gradosr finds what an image classifier has never seen, in archives of any size.

Open-set recognition with gradient-based representations (Lee & AlRegib, ICIP 2021, arXiv 2206.08229).
"""
