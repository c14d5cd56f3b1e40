fn main() -> std::process::ExitCode {
    bivisor::run()
}
