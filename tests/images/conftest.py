from tests.predict.fixtures import folder, images, voc_labels

__all__ = ["folder", "images", "voc_labels"]
