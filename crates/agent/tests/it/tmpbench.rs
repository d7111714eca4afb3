use crate::openssh::Door;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tmp_bench() {
    let door = Door::open().await;
    for cmd in ["true", "true", "head -c 1073741824 /dev/zero"] {
        let t = std::time::Instant::now();
        let mut c = door.command("ssh");
        let out = c.args(["node1", cmd]).stdout(std::process::Stdio::null()).status().await.unwrap();
        println!("BENCH {cmd}: {:?} {out}", t.elapsed());
    }
    let t = std::time::Instant::now();
    let mut c = door.command("ssh");
    let f = std::fs::File::open("/dev/zero").unwrap();
    let _ = f;
    let st = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(format!("head -c 1073741824 /dev/zero | ssh -F {}/config node1 'cat >/dev/null'", door.files.path().display()))
        .status()
        .await
        .unwrap();
    println!("BENCH up: {:?} {st}", t.elapsed());
    let _ = &mut c;
}
