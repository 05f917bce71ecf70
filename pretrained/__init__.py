"""Trained pipelines that come with the package: `ImagePipeline.from_pretrained("smalti/digits")`."""
