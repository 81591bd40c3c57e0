"""What a model is called when nobody says: the last part of where it is."""


def name_of_source(source_type: str, source_path: str) -> str:
    """The folder's name; of a model on the hub its name there, less the revision."""
    path = source_path.rstrip("/")
    if source_type == "huggingface":
        path = path.partition("@")[0]
    return path.rpartition("/")[2]
