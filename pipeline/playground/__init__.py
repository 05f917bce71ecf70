"""The page to play with, served by `pipeline/app.py`: a visitor's actions, apart from their layout in Gradio."""
