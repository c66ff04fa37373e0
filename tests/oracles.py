"""Slow, independent NumPy versions of what jqmix computes, in PyTorch's conventions where those are the standard."""

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def lambda_returns(reward, discount, value, last, lam):
    """One sequence at a time, by recursion on the definition."""
    T1, B = reward.shape
    out = np.zeros((T1, B))
    for b in range(B):
        for t in reversed(range(T1)):
            if last[t, b] or t == T1 - 1:
                out[t, b] = value[t, b]
            else:
                mixed = (1 - lam) * value[t + 1, b] + lam * out[t + 1, b]
                out[t, b] = reward[t, b] + discount[t, b] * mixed
    return out


def torch_gru_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    """torch.nn.GRUCell: weights [3H, in], gates in the order r, z, n."""
    gi = x @ w_ih.T + b_ih
    gh = h @ w_hh.T + b_hh
    i_r, i_z, i_n = np.split(gi, 3, axis=-1)
    h_r, h_z, h_n = np.split(gh, 3, axis=-1)
    r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    n = np.tanh(i_n + r * h_n)
    return (1 - z) * n + z * h


def layer_norm(params, x, eps=1e-6):
    """Over one vector; the identity where there are no parameters."""
    if params is None:
        return x
    scaled = (x - x.mean()) / np.sqrt(x.var() + eps)
    return scaled * np.asarray(params["scale"]) + np.asarray(params["bias"])


def agent_unroll(params, obs, action, first, with_hidden=False):
    """fc–ReLU–GRU–fc over the concatenated input, step by step: obs [T, B, N, O] → q [T, B, N, A] (and h)."""
    T, B, N, _ = obs.shape
    kernel, bias = np.asarray(params["encoder"]["kernel"]), np.asarray(params["encoder"]["bias"])
    head_w, head_b = np.asarray(params["head"]["kernel"]), np.asarray(params["head"]["bias"])
    w_ih, w_hh = (np.concatenate([np.asarray(w).T for w in params[k]]) for k in ("gru_w_i", "gru_w_h"))
    b_ih, b_hh = (np.asarray(params[k]).reshape(-1) for k in ("gru_b_i", "gru_b_h"))
    A, H = head_w.shape[1], head_w.shape[0]
    q, hidden = np.zeros((T, B, N, A)), np.zeros((T, B, N, H))
    for b in range(B):
        for i in range(N):
            h = np.zeros(H)
            for t in range(T):
                last_action = np.zeros(A)
                if first[t, b]:
                    h = np.zeros(H)
                elif t > 0:
                    last_action[action[t - 1, b, i]] = 1
                x = np.concatenate([obs[t, b, i], last_action, np.eye(N)[i]])
                x = layer_norm(params["encoder"].get("norm"), x @ kernel + bias)
                h = torch_gru_cell(np.maximum(x, 0), h, w_ih, w_hh, b_ih, b_hh)
                q[t, b, i] = layer_norm(params.get("norm"), h) @ head_w + head_b
                hidden[t, b, i] = h
    return (q, hidden) if with_hidden else q


def qmix(params, q, state, positivity=np.abs):
    """REFERENCE §3's formula, one row at a time; the weights of the hypernetworks W1 and W2 taken apart."""
    p = {k: (np.asarray(v["kernel"], np.float64), np.asarray(v["bias"], np.float64)) for k, v in params.items()}
    dense = lambda name, x: x @ p[name][0] + p[name][1]  # noqa: E731
    hidden = p["hyper"][0].shape[1] // 2
    out = np.zeros(len(q))
    for row, (q_i, s) in enumerate(zip(q, state, strict=True)):
        both = np.maximum(dense("hyper", s), 0)
        w1 = positivity(dense("w1", both[:hidden])).reshape(len(q_i), -1)
        w2 = positivity(dense("w2", both[hidden:]))
        b1 = dense("b1", s)
        v = dense("v", np.maximum(dense("v_hidden", s), 0))[0]
        x = q_i @ w1 + b1
        elu = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
        out[row] = elu @ w2 + v
    return out


def dense(p, x):
    """torch.nn.Linear of one vector."""
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def mlp(p, x):
    """torch.nn.Sequential(Linear, ReLU, Linear, …) of one vector."""
    for i in range(len(p)):
        x = dense(p[f"layer{i}"], np.maximum(x, 0) if i else x)
    return x


def head(p, k, x):
    """The k-th of several two-layer perceptrons, taken out of their shared arrays: Linear, ReLU, Linear."""
    width = np.asarray(p["kernel"]).shape[1]
    mine = slice(k * width, (k + 1) * width)
    hidden = np.maximum(dense({name: np.asarray(w)[..., mine] for name, w in p["hidden"].items()}, x), 0)
    return dense({"kernel": np.asarray(p["kernel"])[k], "bias": np.asarray(p["bias"])[k]}, hidden)


def qatten(params, q, state, obs):
    """Head by head, agent by agent, as Qatten's text has it."""
    heads, _, e = np.asarray(params["query"]["kernel"]).shape
    out = np.zeros(len(q))
    for row in range(len(q)):
        strength = np.abs(mlp(params["head"], state[row]))
        for h in range(heads):
            query = head(params["query"], h, state[row])
            keys = [dense(params["key"], o)[h * e : (h + 1) * e] for o in obs[row]]
            raw = np.exp([query @ key / np.sqrt(e) for key in keys])
            out[row] += strength[h] * np.sum(raw / raw.sum() * q[row])
        out[row] += mlp(params["c"], state[row])[0]
    return out


def qplex(params, q, state, action, best, n_actions):
    """V_tot + A_tot, as QPLEX's text has it: Q_tot = Σ M'_i + Σ λ_i (Q'_i − M'_i)."""
    out = np.zeros(len(q))
    for row in range(len(q)):
        s = state[row]
        both = np.concatenate([s, np.eye(n_actions)[action[row]].reshape(-1)])
        w, v = np.abs(mlp(params["w"], s)) + 1e-10, mlp(params["v"], s)
        importance = np.zeros(q.shape[1])
        for k in range(np.asarray(params["key"]["kernel"]).shape[0]):
            key = np.abs(head(params["key"], k, s)) + 1e-10
            importance += key * sigmoid(head(params["agents"], k, s)) * sigmoid(head(params["actions"], k, both))
        own, top = w * q[row] + v, w * best[row] + v
        out[row] = np.sum(top) + np.sum(importance * (own - top))
    return out


def qtran(params, state, hidden, action, n_actions):
    """Q_jt and V of every row."""
    joint, v = np.zeros(len(state)), np.zeros(len(state))
    for row in range(len(state)):
        pairs = zip(np.asarray(hidden[row]), np.eye(n_actions)[np.asarray(action[row])], strict=True)
        encoded = sum(mlp(params["encode"], np.concatenate(pair)) for pair in pairs)
        joint[row] = mlp(params["q"], np.concatenate([state[row], encoded]))[0]
        v[row] = mlp(params["v"], state[row])[0]
    return joint, v


def qtran_constraints(params, q, state, joint, n_actions):
    """½ (L_opt + 0.1 L_nopt) of every row."""
    taken, v = qtran(params, state, joint.hidden, joint.action, n_actions)
    at_best, _ = qtran(params, state, joint.hidden, joint.greedy, n_actions)
    opt = joint.best.sum(-1) - at_best + v
    nopt = np.minimum(q.sum(-1) - taken + v, 0)
    return 0.5 * (opt**2 + 0.1 * nopt**2)


def central(params, q, state):
    """The unconstrained mixer of weighted QMIX's Q̂*."""
    rows = zip(q, state, strict=True)
    return np.array([mlp(params["q"], np.concatenate([s, x]))[0] + mlp(params["v"], s)[0] for x, s in rows])


def wqmix_weight(name, alpha, q_tot, target, value, is_greedy):
    """One slot's weight, by the cases of the paper."""
    if name == "ow_qmix":
        return 1.0 if q_tot < target else alpha
    return 1.0 if is_greedy or target > value else alpha


def rmsprop(params, grads, lr, alpha=0.99, eps=1e-5):
    """torch.optim.RMSprop: ε outside the square root. ``grads`` is a list of steps."""
    square = np.zeros_like(params)
    for g in grads:
        square = alpha * square + (1 - alpha) * g * g
        params = params - lr * g / (np.sqrt(square) + eps)
    return params


def adam(params, grads, lr, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.Adam."""
    m, v = np.zeros_like(params), np.zeros_like(params)
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        params = params - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return params
