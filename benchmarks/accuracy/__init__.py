"""How well the models learn: bags with a known answer and a classic set, each a table.

``table`` says what a table is and fills it; one module for each table; ``tables`` names them all.
"""
