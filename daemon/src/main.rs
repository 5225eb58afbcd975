//! The `carveout` binary: everything is in the library, where it can be tested.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::cli::main()
}
