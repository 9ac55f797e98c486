"""Data and models that travel with the package: scikit-learn's digits and a CNN that tools/train_digits.py trained on them."""
