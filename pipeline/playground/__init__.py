"""The page to play with, which `pipeline/app.py` serves: what a visitor does, apart from how it is laid out in
Gradio."""
