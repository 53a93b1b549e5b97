from tests.predict.fixtures import folder, images, stand_in, true_network, voc_labels

__all__ = ["folder", "images", "stand_in", "true_network", "voc_labels"]
