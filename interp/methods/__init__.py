"""Methods: one file each, built on the layers below; they never import each other."""
