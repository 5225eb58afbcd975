//! `${NAME}` and `${NAME:-default}` in the configuration's values.
//!
//! The replacement happens after the YAML has been read, one value at a time, so that no text from
//! the environment can become structure or move a line.

/// How the environment is asked; reading it is the caller's business.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces the variables in `text`; `None` when it holds nothing to replace.
///
/// - `${NAME}`: the variable's value, even an empty one; an error when it is not set.
/// - `${NAME:-default}`: the default when the variable is not set or empty (as in a shell). The
///   default is taken as it stands; it may contain pairs of braces, but no further variables.
/// - `$$` is a single `$`, so `$${X}` is the text `${X}`. Any other `$` is itself.
pub(super) fn replace(text: &str, environment: Environment) -> Result<Option<String>, String> {
    if !text.contains("${") && !text.contains("$$") {
        return Ok(None);
    }
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        done.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            done.push('$');
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('{') {
            let (variable, after) =
                split_at_closing_brace(inside).ok_or("a ${ has no } (a plain ${ is written $${)")?;
            done.push_str(&value(variable, environment)?);
            rest = after;
        } else {
            done.push('$');
        }
    }
    done.push_str(rest);
    Ok(Some(done))
}

/// What stands before and after the `}` that ends a variable.
fn split_at_closing_brace(text: &str) -> Option<(&str, &str)> {
    let mut open = 0;
    for (at, sign) in text.char_indices() {
        match sign {
            '{' => open += 1,
            '}' if open == 0 => return Some((&text[..at], &text[at + 1..])),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

fn value(variable: &str, environment: Environment) -> Result<String, String> {
    let (name, default) = variable.split_once(":-").map_or((variable, None), |(name, default)| (name, Some(default)));
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !plain || name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        // The text may be a piece of a password: it is not shown.
        return Err(
            "a ${…} holds no variable's name (expected ${NAME} or ${NAME:-default}; a plain ${ is written $${)"
                .to_owned(),
        );
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the environment variable {name} is not set and has no default (${{{name}:-…}})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replaced(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "A" => Some("one".to_owned()),
            "EMPTY" => Some(String::new()),
            "HOSTILE" => Some("${A} $$ }{".to_owned()),
            _ => None,
        };
        Ok(replace(text, &environment)?.unwrap_or_else(|| text.to_owned()))
    }

    #[test]
    fn variables_and_defaults_are_replaced() {
        for (text, expected) in [
            ("x${A}y${A}", "xoneyone"),
            ("${A:-two}", "one"),
            ("${NONE:-two}", "two"),
            ("${EMPTY:-two}", "two"),
            ("${NONE:-}${EMPTY}", ""),
            ("${NONE:-shop_{tenant}}_x", "shop_{tenant}_x"),
            ("$${A} $A a$ $", "${A} $A a$ $"),
            ("shop_{tenant}", "shop_{tenant}"),
            ("${HOSTILE}", "${A} $$ }{"),
        ] {
            assert_eq!(replaced(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_missing_variable_is_named_and_a_broken_one_is_not_shown() {
        assert!(replaced("${NONE}").unwrap_err().contains("variable NONE is not set"));
        for text in ["${", "${A", "${}", "${1A}", "${A-x}", "${S3CR3T x}", "${A:-{}"] {
            let error = replaced(text).unwrap_err();
            assert!(!error.contains("S3CR3T") && error.contains("$${"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_value_arrives_as_it_is(value: String) {
            let environment = |_: &str| Some(value.clone());
            prop_assert_eq!(replace("${X}", &environment), Ok(Some(value.clone())));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[${}:aé-]{0,12}") {
            replace(&text, &|_: &str| None).ok();
        }
    }
}
