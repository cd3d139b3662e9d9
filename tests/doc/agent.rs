// An agent for the library's doc tests, which include this file: the program itself, in a thread
// of the test, with a pool `web` of two free ports and a socket in a folder of its own. Any user
// may run it. It ends with the test.

struct DocAgent {
    folder: std::path::PathBuf,
}

impl DocAgent {
    fn start() -> DocAgent {
        let folder = std::env::temp_dir().join(format!("portpool-doc-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let agent = DocAgent { folder };
        let free = || std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let ports = [free(), free()].map(|free| free.local_addr().expect("an address").port());
        let file = agent.folder.join("portpool.toml");
        std::fs::write(&file, format!("[pool.web]\nports = {ports:?}\n")).expect("a file");
        let arguments = ["portpool".into(), "agent".into(), "--config".into(), file.into()];
        let arguments = arguments.into_iter().chain(["--socket".into(), agent.socket().into()]);
        let arguments: Vec<std::ffi::OsString> = arguments.collect();
        let serving = std::thread::spawn(move || portpool::cli::run(arguments));
        while portpool::Client::connect_to(&agent.socket()).is_err() {
            assert!(!serving.is_finished(), "the agent does not start");
            std::thread::yield_now();
        }
        agent
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.join("a.sock")
    }
}

impl Drop for DocAgent {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
