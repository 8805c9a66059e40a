"""Label selectors and node selector requirements of objects."""

from collections.abc import Iterable

from app.devcluster.apiserver.status import Json


def selects(selector: Json | None, labels: dict[str, str]) -> bool:
    """Like metav1.LabelSelector: None selects nothing, an empty selector everything."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(rule_holds(rule, labels) for rule in selector.get("matchExpressions") or ())


def rule_holds(rule: Json, labels: dict[str, str]) -> bool:
    """One requirement with key, operator and values. NotIn also holds where the label is missing."""
    value, given = labels.get(rule["key"]), rule.get("values") or ()
    match rule["operator"]:
        case "In":
            return value in given
        case "NotIn":
            return value not in given
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            return _compares(value, operator, given)
        case _:
            return False


def with_keys(selector: Json | None, keys: Iterable[str], labels: dict[str, str], operator: str = "In") -> Json | None:
    """The selector, limited to the values that `labels` have for `keys` (matchLabelKeys); missing keys are ignored."""
    rules = [{"key": key, "operator": operator, "values": [labels[key]]} for key in keys if key in labels]
    if selector is None or not rules:
        return selector
    return {**selector, "matchExpressions": [*(selector.get("matchExpressions") or ()), *rules]}


def _compares(value: str | None, operator: str, given: Iterable[str]) -> bool:
    try:
        left, right = int(value or ""), int(next(iter(given), ""))
    except ValueError:
        return False
    return left > right if operator == "Gt" else left < right
