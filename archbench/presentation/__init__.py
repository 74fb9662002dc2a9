"""How values are shown in the terminal and on the page: quantities as text, and tables."""
