"""The student in PyTorch, trained by a plain loop of one's own: `python in_torch.py DATA.npz OUT.pt EPOCHS` prints seconds and accuracy."""

import json
import sys
import time

import numpy as np
import torch
from networks import student


def main(data: str, out: str, epochs: int) -> None:
    with np.load(data) as arrays:
        x, y, x_test, y_test = (torch.from_numpy(arrays[k]) for k in ("x_train", "y_train", "x_test", "y_test"))
    x, x_test = (a.reshape(-1, 1, 28, 28).float() / 255 for a in (x, x_test))
    model = student()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    start = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen].long()).backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    torch.save(model.state_dict(), out)
    with torch.no_grad():
        accuracy = float((model.eval()(x_test).argmax(1) == y_test).float().mean())
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
