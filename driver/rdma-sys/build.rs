//! Links libibverbs and librdmacm, or says which packages are missing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for (library, oldest, package) in
        [("libibverbs", "1.14", "libibverbs-dev"), ("librdmacm", "1.3", "librdmacm-dev")]
    {
        let found = pkg_config::Config::new().atleast_version(oldest).probe(library);
        if let Err(error) = found {
            eprintln!("{library} {oldest} or newer is needed: apt-get install {package}\n{error}");
            std::process::exit(1);
        }
    }
}
