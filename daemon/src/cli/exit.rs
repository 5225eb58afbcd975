//! How a command ends. The numbers are held by other people's scripts; see INTERFACE.

use schemas::record::Fault;

use super::output::{Output, note, plain};

/// The exit codes; others are unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The answer is no: differences, a failed check, a refused move.
    No = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The daemon or a database cannot be reached.
    Unreachable = 3,
    /// Another instance holds the slot or the state directory.
    Held = 4,
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, and what to do next; `next` may be empty.
    pub fault: Fault,
}

impl Failure {
    /// A failure from its parts; see [`Fault`].
    pub fn new(exit: Exit, code: &str, object: &str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Failure { exit, fault: Fault::new(code, object, message, next) }
    }

    /// An answer of no, in the words of whoever gave it.
    pub fn no(fault: Fault) -> Self {
        Failure { exit: Exit::No, fault }
    }

    /// What PostgreSQL said, sorted by what a script does about it.
    pub fn database(error: &connectors::postgres::Error) -> Self {
        use connectors::postgres::error::Cause;
        let (exit, next) = match (&error.cause, error.sqlstate().and_then(|code| code.get(..2))) {
            // No connection, refused, no such database, out of places, shutting down, disk.
            (Cause::Connection(_) | Cause::Login(_), _) | (_, Some("08" | "28" | "3D" | "53" | "57" | "58")) => (
                Exit::Unreachable,
                "check the address, the role and its password in the configuration, and pg_hba.conf on the server",
            ),
            (Cause::State(_), _) => (Exit::Usage, ""),
            _ => (Exit::No, ""),
        };
        Failure::new(exit, "database", "database", error.to_string(), next)
    }

    /// Tells a person, or with `--output json` a program, on stderr.
    pub fn report(&self, output: Output) {
        let json = serde_json::to_string(&self.fault).ok().filter(|_| output == Output::Json);
        note(&(json.unwrap_or_else(|| describe("error", &self.fault)) + "\n"));
    }
}

/// A fault in one or two lines, the first beginning with `label`.
pub fn describe(label: &str, fault: &Fault) -> String {
    let about =
        if fault.message.contains(&fault.object) { String::new() } else { format!("{}: ", plain(&fault.object)) };
    let next = if fault.next.is_empty() { String::new() } else { format!("\n  next: {}", plain(&fault.next)) };
    format!("{label}: {about}{}{next}", plain(&fault.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_object_once_and_the_next_step() {
        let fault = Fault::new("constraint", "public.orders", "a row was refused", "mend it");
        assert_eq!(describe("fault", &fault), "fault: public.orders: a row was refused\n  next: mend it");
        let fault = Fault::new("bad_tenant", "x", "tenant \"x\" is wrong", "");
        assert_eq!(describe("error", &fault), "error: tenant \"x\" is wrong");
    }
}
